"""What the notebooks need to teach: a common start, plots and widgets."""
