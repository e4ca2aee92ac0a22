"""The emulator: processes, links, transport, measurement. It knows no machine learning."""
