"""Studies: a paper's table as a file of named entries, trained where runs are missing and told as one report."""
