"""Flow matching on distributions whose velocity or samples are known."""

import torch
from torch import nn

from ssl_zoo.decoding.flow import flow_loss, flow_samples
from ssl_zoo.seeding import generator_for


def test_samples_of_the_exact_velocity_have_the_gaussian_it_belongs_to():
    mean, std = 2.0, 0.3

    def velocity(points, time):
        # Of x = (1 - t) noise + t data with data ~ N(mean, std^2): E[data - noise | x].
        t = time[:, None]
        variance = (1 - t).square() + (t * std).square()
        return mean + (t * std**2 - (1 - t)) / variance * (points - t * mean)

    samples = flow_samples(velocity, torch.randn(4000, 1, generator=generator_for("toy")), num_steps=30)
    assert abs(samples.mean().item() - mean) < 0.03
    assert abs(samples.std().item() - std) < 0.03


def test_a_trained_flow_gives_each_condition_its_own_two_modes():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)

    def conditional(condition):
        return lambda points, time: network(torch.cat([points, time[:, None], condition], dim=1))

    for _ in range(500):
        condition = torch.randint(2, (256, 1)).float() * 2 - 1
        mode = torch.randint(2, (256, 1)).float() * 2 - 1
        data = 2 * condition + mode + 0.2 * torch.randn(256, 1)
        loss = flow_loss(conditional(condition), data, torch.randn(256, 1), torch.randn(256))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for sign in (-1.0, 1.0):
        samples = flow_samples(conditional(torch.full((500, 1), sign)), torch.randn(500, 1), num_steps=20)
        offset = samples - 2 * sign
        assert 0.35 < (offset > 0).float().mean() < 0.65
        for mode in (-1, 1):
            assert abs(offset[offset * mode > 0].median().item() - mode) < 0.2
