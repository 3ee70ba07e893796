"""What is made of counts and logits: scores of classes, calibration, intervals. Pure functions of arrays."""
