"""How stages run, and what they will need: planning stands beside the list of what it plans.

stage skips, resumes and keeps a manifest; inputs compares what a stage reads with its hashes.
processes shares work and locks a run; machine measures this one. pipeline lists the stages and
kinds says what a kind of corpus does in them: a stage is imported when it runs. sizes, needs and
ledger are `python -m train plan`.
It may import `corpora` and what lies below. Open stage.py first, then pipeline.py.
"""
