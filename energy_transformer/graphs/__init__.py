"""What graph models need beside the core: data by PyTorch Geometric, positions, anomalies and pictures.

All of it needs the extra `graphs`.
"""
