"""The load generator: closed-loop clients, from few to many, and one row for each of their requests."""
