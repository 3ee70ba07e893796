"""Processes, devices and kernels: what a result must not depend on."""
