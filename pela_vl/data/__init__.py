"""Data: text cleaning, tokeniser, image reading, transforms, data sets, collation and loaders.

Nothing is imported here, so that the parts without torch (scenes, image reading, text) stay quick to import.
"""
