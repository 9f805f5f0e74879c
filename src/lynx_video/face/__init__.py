"""Faces: find them, judge them, cut the two aligned crops, and turn one into the 512 numbers the adapters were trained on."""
