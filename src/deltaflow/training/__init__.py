"""Training: Lightning on the inside, GluonTS on the outside."""
