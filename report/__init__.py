"""Reports: what an evaluation or a cross-validation found, on one page that needs no network and no other file."""
