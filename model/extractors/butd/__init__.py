"""Bottom-up attention's Faster R-CNN, the detector whose regions UNITER and LightningDOT are trained on, in plain torch."""
