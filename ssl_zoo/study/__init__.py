"""Studies reproduce a paper's table: a file of named entries, a training for every missing run, one report."""
