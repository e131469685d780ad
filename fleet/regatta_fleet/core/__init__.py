"""The fleet's decisions as pure functions: who is in a wave, what a gate says, what a rollout does next."""
