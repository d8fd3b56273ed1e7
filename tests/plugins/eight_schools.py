"""A user's model: eight schools, with columns of effects and standard errors."""

import pyro
import pyro.distributions as dist

import latentlab as ll
from latentlab.symmetry.groups import Identity


class EightSchools(ll.LatentModel):
    r"""Effects of eight schools, not centred.

    $$ \mu \sim N(0, 5), \quad \tau \sim \text{HalfCauchy}(5), \quad e_j \sim N(0, 1), \quad \theta_j = \mu + \tau e_j,
       \quad y_j \sim N(\theta_j, s_j) $$
    """

    name = "eight_schools"
    dims = {"mu": (), "tau": (), "e": ("unit",), "theta": ("unit",)}
    position = ll.Position("theta")
    symmetry = Identity()
    methods = ("nuts", "svi", "map")

    def model(self, x):
        y, s = x[:, 0], x[:, 1]
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("unit", len(x)):
            e = pyro.sample("e", dist.Normal(0.0, 1.0))
            theta = pyro.deterministic("theta", mu + tau * e)
            pyro.sample("y", dist.Normal(theta, s), obs=y)
