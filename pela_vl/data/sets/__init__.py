"""The data sets that training and evaluation read."""
