"""Pretraining: a backbone trained on images of many data sets, labelled or not, with or without a teacher."""
