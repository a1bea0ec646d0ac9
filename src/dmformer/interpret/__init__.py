"""Class activation maps and measures of what a model looks at, as functions of models and images."""
