"""The load generator: clients, from few to many or as another shape says, and one row for each of their requests."""
