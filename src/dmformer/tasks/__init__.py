"""Tasks: what a head predicts, how it is scored, what a prediction looks like."""
