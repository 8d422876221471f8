"""A one-step network of latents of your own: python train_on_my_latents.py latents.npy [steps]

Classes lie in latents_labels.npy beside them, if there are any. The loop is all there is to
drifting and can be copied; the Trainer below adds averaged weights, even batches and a log.
"""

import sys

import torch

import keodrift as kd
from keodrift.data import Latents
from keodrift.networks import ConditionalMLP
from keodrift.tasks import LatentTask
from keodrift.training import Objective, Trainer

latents, steps = Latents.load(sys.argv[1]), int((sys.argv[2:] or [2000])[0])
drift = kd.SinkhornDrift(tau=0.05, relative=True, cost="squared", half_steps=41)
generator = torch.Generator().manual_seed(0)
network, other = (ConditionalMLP(latents.dim, latents.dim, latents.classes) for _ in range(2))

optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
for _ in range(steps):
    y, labels = latents.draw(64, generator)
    noise, more = torch.randn(2, len(y), latents.dim, generator=generator)
    with torch.no_grad():
        model = network(more, labels)  # other draws repel, so that nothing shrinks
    classes = {"x_labels": labels, "y_labels": labels, "model_labels": labels}
    optimizer.zero_grad()
    kd.drift_loss(network(noise, labels), y, drift, model=model, **classes).backward()
    optimizer.step()

task = LatentTask(latents, batch=64, balanced=True, negatives="fresh")
optimizer = torch.optim.Adam(other.parameters(), lr=1e-3)
objective = Objective(drift, negatives="fresh")
trainer = Trainer(other, task.batches(other), objective, optimizer, generator, progress=True)
trainer.run(steps)
kd.save_network(trainer.average, "network.safetensors")
print("W2^2 of a class:", task.evaluate(network), "and", task.evaluate(trainer.average))
