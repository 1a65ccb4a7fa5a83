"""Diffusion in continuous time for any network: schedules, losses, samplers. jnp, float32."""
