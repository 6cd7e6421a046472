"""The server: its clients' connections, the pool's workers as processes, and the metrics."""
