"""The objects of a job, as the API server takes them. Pure: a job and a site in, plain data out; one file for each kind of child.

    render(job, ...) -> ConfigMap, ServiceAccount, Services, NetworkPolicies, budgets      what every job has
    rollouts(...), verifiers(...), learner(...) -> StatefulSet, Deployment, Job             by the lifecycle's leave
    workload(...) -> Workload                                                               for jobs that name a queue

Commands, variables, ports and probes come from `rlvr_operator.plan`, which local runs carry out too. Lists are in a fixed order, since the
order of, say, variables is part of an object's identity.
"""

from rlvr_operator.render.learner import learner
from rlvr_operator.render.rollouts import rollouts
from rlvr_operator.render.site import Object, Owner, Site
from rlvr_operator.render.standing import standing
from rlvr_operator.render.verifiers import verifiers
from rlvr_operator.render.workload import workload

__all__ = ["Object", "Owner", "Site", "learner", "rollouts", "standing", "verifiers", "workload"]
