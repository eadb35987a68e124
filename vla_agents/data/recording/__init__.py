"""Recording that survives: streaming encoders, a journal, repair."""
