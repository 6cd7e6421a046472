"""Who starts and ends worker processes (kaas.pool.engine)."""
