"""Ten lines: a drift between two clouds, a field, a training loss."""

import torch

import keodrift as kd

x = torch.randn(2000, 2, requires_grad=True)  # the model's samples
y = torch.randn(3000, 2) + 2  # the data

drift = kd.SinkhornDrift(tau=0.5)  # cost ½‖x−y‖², solved to a tolerance
print("mean drift", drift(x, y).mean(0))  # the difference of the means, (2, 2)

field = drift.fit(x, y)
print("at the origin", field(torch.zeros(1, 2)), "marginal error", float(field.marginal_error))

kd.drift_loss(x, y, drift).backward()  # gradient −V/N: gradient descent follows the drift
print("largest gradient", float(x.grad.norm(dim=-1).max()))
