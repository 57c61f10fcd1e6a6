"""The mathematics: divergences, paths, noise levels, preconditioning, weights, schedules. It imports core."""
