"""Decoding of predictions to pixels: a conditional generator over a frozen predictor (I-JEPA, figure 6)."""
