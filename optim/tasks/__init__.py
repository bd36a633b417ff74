"""The trainings: what each trains, on which batches, with which loss, and how it is validated. `optim.loop.fit` runs them."""
