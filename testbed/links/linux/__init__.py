"""What both backends with namespaces ask of the kernel."""
