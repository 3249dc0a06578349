"""The `gpu` profile's trial: one command for a machine with CUDA that checks, measures, trains, draws and reports."""
