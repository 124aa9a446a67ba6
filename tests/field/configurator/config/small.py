# What this training differs in.
max_iters = 5
