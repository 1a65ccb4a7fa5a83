"""The loss of a batch as the train step computes it, with what is random made from a key."""

from imagen_jax.training.step import make_losses, prior_weights, random_inputs


def make_loss(stage, encoder, dropout, prior=None):
    """(params, batch, key, frozen) -> (loss, (loss an example, t an example))."""
    losses_of = make_losses(stage, encoder)

    def loss(params, batch, key, frozen):
        random = random_inputs(stage, key, batch["image"].shape, dropout, prior)
        losses = losses_of(params, batch, random, frozen)
        return losses @ prior_weights(len(losses), prior), (losses, random.t)

    return loss
