"""Pretraining: a backbone from photos of many sets, labelled or not, with or without a teacher."""
