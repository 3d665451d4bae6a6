"""A reconstruction that finds the truth."""

import torch

from larpanda.event import Interaction, Particle, Reconstruction, Species, Status


def perfect(event):
    """The truth, told as a reconstruction: particles of the five species above threshold."""
    n = len(event)
    below = ~((event.visible(0.13)[1]) >= 0)
    species = event.particles.species[event.particle.clamp(min=0)]
    known = (event.particle >= 0) & (species >= 0)
    particle = torch.where(known & ~below, event.particle, -1)
    interaction = torch.where((event.interaction >= 0) & ~below, event.interaction, -1)
    particles = []
    for i in torch.unique(particle[particle >= 0]).tolist():
        mine = particle == i
        kind = Species(int(event.particles.species[i]))
        of = (
            int(torch.bincount(interaction[mine & (interaction >= 0)]).argmax())
            if (interaction[mine] >= 0).any()
            else -1
        )
        particles.append(Particle(i, kind, 1.0, (0.2,) * 5, of, int(mine.sum()), float(event.energy[mine].sum())))
    interactions = [
        Interaction(i, 1.0, int((interaction == i).sum()), float(event.energy[interaction == i].sum()))
        for i in torch.unique(interaction[interaction >= 0]).tolist()
    ]
    nothing = torch.full((n, 5), torch.nan)
    return Reconstruction(
        Status.OK, "", below, event.motif, nothing, particle, interaction, tuple(particles), tuple(interactions), 0
    )
