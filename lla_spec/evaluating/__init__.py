"""Values and bounds of a declaration: a plan compiled once, read in float64, in balls, and in bounds on rounding."""
