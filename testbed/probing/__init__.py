"""What the certificate's probes and those of calibration have in common."""
