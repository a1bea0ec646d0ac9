"""How fast models are and how much memory they take, in several forms, beside one another."""
