"""A trained model as files that other programs read: ONNX, torch.export, a state_dict, safetensors, each read back and checked."""
