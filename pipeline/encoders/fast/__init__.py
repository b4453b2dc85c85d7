"""R3D-18 in int8, and in bf16 by Winograd's algorithm along time."""
