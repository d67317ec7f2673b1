"""What methods are made of: tasks that train nothing, views, solvers, self-training, the memory of hints."""
