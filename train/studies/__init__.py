"""What the paper's reviewers asked, each question a file: `python -m train.studies NAME RECIPE`."""
