"""The server: one kernel, worker processes on several GPUs, and the placement of invocations on them."""
