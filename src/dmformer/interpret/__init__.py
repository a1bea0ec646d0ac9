"""What a model looks at and how it computes: class activation and measures, as functions of models and images."""
