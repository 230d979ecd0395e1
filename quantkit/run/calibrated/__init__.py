"""What runs that quantize have in common while calibration tokens pass through the layers."""
