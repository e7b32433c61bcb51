"""Comparing what the backends compute: with each other, and with a float64 reference that says who is off."""
