"""Studies that train memories or decoders of their own, below the run's folder.

compute and update train on the run's decoder or memory, through teach. sentences teaches a
bundle's memory as the page does. domains, sensitivity and sizes run the usual stages again with one
choice changed.
It may import `train.studies.run` and the rooms below `train.studies`. Open sensitivity.py first.
"""
