"""How stages run, and what they will need.

stage skips, resumes and writes manifests; inputs compares the files a stage reads with their
hashes. processes has the process group and the locks; machine has the hardware's sizes and rates.
pipeline lists the stages, which are imported when they run; kinds is the interface of a kind of
corpus. sizes, needs and ledger are `python -m train plan`.
It may import `corpora` and what lies below. Open stage.py first, then pipeline.py.
"""
