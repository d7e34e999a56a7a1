"""Predictors, and the forecasts they make: saved, loaded, asked by DataFrames."""
