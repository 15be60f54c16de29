"""Values of the Helm chart: one model for `values.yaml`, its comments, and the schema that Helm checks a value file against.

A value that the chart does not know is an error. What Kubernetes alone can judge (affinity, peers of policies) is passed on as it is.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from rlvr_api.model import ApiModel
from rlvr_api.pods import LabelValue, ObjectName, QualifiedName, Resources, Toleration

Labels = dict[QualifiedName, LabelValue]
Annotations = dict[QualifiedName, str]
Namespace = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Repository = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+([._/-]+[a-z0-9]+)*$", max_length=255)]
Registry = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9][-A-Za-z0-9.]*(:[0-9]+)?(/[-a-z0-9._]+)*)?$", max_length=255)]
Tag = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9_][-A-Za-z0-9_.]*)?$", max_length=128)]
Digest = Annotated[str, StringConstraints(pattern=r"^(sha256:[0-9a-f]{64})?$")]
Duration = Annotated[str, StringConstraints(pattern=r"^[0-9]+(ms|s|m|h)$")]
ProfilePath = Annotated[
    str, StringConstraints(pattern=r"^([A-Za-z0-9_-][A-Za-z0-9._-]*/)*[A-Za-z0-9_-][A-Za-z0-9._-]*\.json$", max_length=253)
]
Port = Annotated[int, Field(ge=1, le=65_535)]


class Image(ApiModel):
    """One image."""

    repository: Repository
    """Repository, below the registry."""
    tag: Tag = ""
    """Empty: the chart's appVersion."""
    digest: Digest = ""
    """`sha256:...`; wins over the tag."""


class Images(ApiModel):
    """The images of the operator and of the jobs' pods."""

    registry: Registry = ""
    """Host, and path if any, before each repository, for example of a mirror. Empty: what the nodes' container runtime takes for it."""
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    """When a node pulls. `Never` is for images that were loaded into it."""
    operator: Image = Image(repository="rlvr/operator")
    """The operator, and the pods of `helm test`."""
    rollout: Image = Image(repository="rlvr/rollout")
    """Engines. A job keeps the images that it was accepted with: a new default counts for new attempts."""
    learner: Image = Image(repository="rlvr/learner")
    """Learners."""
    verifier: Image = Image(repository="rlvr/verifier")
    """Verifiers."""


class NamedSecret(ApiModel):
    """A Secret by its name."""

    name: ObjectName
    """Name of the Secret."""


class Crds(ApiModel):
    """The CustomResourceDefinition of RLVRJob."""

    enabled: bool = True
    """Install and upgrade it with this release. False where somebody else does: one release in a cluster owns it."""
    keep: bool = True
    """Leave it when the release is uninstalled. Without it every RLVRJob of the cluster is deleted, and with the job its pods."""


class Rbac(ApiModel):
    """Rights of people; those of the operator are always made, and hold what it uses and no more."""

    aggregate_to_user_roles: bool = True
    """Let whoever has the cluster's role view, edit or admin in a namespace see, or see and write, its RLVRJobs."""


class DisruptionBudget(ApiModel):
    """Evictions of the operator's pods. The jobs have budgets of their own."""

    enabled: bool = True
    """Make one."""
    max_unavailable: Annotated[int, Field(ge=1)] = 1
    """Pods that a drain may evict at a time. With one replica a drain moves it, and jobs go on meanwhile."""


class NetworkPolicy(ApiModel):
    """Traffic of the operator's pods; those of the jobs always have policies."""

    enabled: bool = True
    """Let in who asks for health and metrics, and let out to DNS, the API server, the jobs' pods and the trace collector."""
    metrics_from: list[dict[str, Any]] = Field(default_factory=list)
    """Peers, as in a NetworkPolicy, that may read the metrics. Empty: everybody in the cluster."""
    api_server_ports: list[Port] = Field(default_factory=list)
    """Ports that the API server listens on. Empty: Helm asks the cluster at install and upgrade; `helm template` cannot, and takes 443 and
    6443."""


class Monitor(ApiModel):
    """What the Prometheus operator scrapes."""

    enabled: bool = False
    """Make one. Needs the Prometheus operator's definitions."""
    interval: Duration = "30s"
    """Time between two scrapes."""
    labels: Labels = Field(default_factory=dict)
    """Labels that your Prometheus selects by."""


class PodMonitor(Monitor):
    """What the Prometheus operator scrapes of the jobs' pods."""

    metrics_from: list[dict[str, Any]] = Field(default_factory=list)
    """Peers, as in a NetworkPolicy, that the jobs' own policies let in to read the metrics: your Prometheus, and no more, for the ports are
    those of status and verdicts, 8082 and 8081. Empty: nobody."""


class PrometheusRule(ApiModel):
    """Alerts about the operator and its jobs."""

    enabled: bool = False
    """Make them. Needs the Prometheus operator's definitions."""
    labels: Labels = Field(default_factory=dict)
    """Labels that your Prometheus selects by."""
    runbook: str = "docs/failure-modes.md"
    """Page that `runbook_url` points into; the alert's name in lower case is the anchor. Write your own address of it."""


class Dashboard(ApiModel):
    """A Grafana dashboard in a ConfigMap, for Grafana's sidecar."""

    enabled: bool = False
    """Make it."""
    labels: Labels = Field(default_factory=lambda: {"grafana_dashboard": "1"})
    """Labels that the sidecar selects by."""
    annotations: Annotations = Field(default_factory=dict)
    """For example `grafana_folder`."""


class Sandbox(ApiModel):
    """Pods that run what a model wrote."""

    user_namespaces: bool = False
    """Give each a user namespace (`hostUsers: false`), so that no user in it is one of the node. Needs nodes that offer it: Linux 6.3 and
    containerd 2.0, or newer."""
    seccomp_profile: ProfilePath = "rlvr-sandbox.json"
    """Seccomp profile where an environment asks for level L2 of the sandbox: each slot is then in namespaces of its own, which Kubernetes'
    default profile does not let it make. A path below the kubelet's folder of profiles; `files/seccomp-sandbox.json` of this chart is one.
    It must be on the nodes."""
    install_seccomp_profile: bool = False
    """Put the chart's onto every node, by a DaemonSet of this release. It writes to the node, so the release's namespace must admit that
    (Pod Security `privileged`)."""
    seccomp_directory: Annotated[str, StringConstraints(pattern=r"^/[A-Za-z0-9_./-]+$", max_length=253)] = "/var/lib/kubelet/seccomp"
    """The kubelet's folder of profiles, on the nodes."""


class Kueue(ApiModel):
    """Queues of Kueue, which jobs name in `scheduling.queue`."""

    enabled: bool = False
    """Let jobs name a queue, and the operator write Workloads and read flavors and priority classes. Kueue, 0.15 or newer, may be installed
    before or after. Name `RLVRJob.v1alpha1.rlvr.dev` under `integrations.externalFrameworks` of its configuration."""


class Tracing(ApiModel):
    """Traces of the operator; jobs name their own collector."""

    endpoint: Annotated[str, StringConstraints(pattern=r"^(https?://[^\s/:]+(:[0-9]+)?(/\S*)?)?$", max_length=1024)] = ""
    """OTLP over HTTP, for example `http://otel-collector.observability:4318`. Empty: no traces."""


class ChartValues(ApiModel):
    """Values of the chart rlvr-operator."""

    fullname_override: Annotated[str, StringConstraints(pattern=r"^([a-z]([-a-z0-9]*[a-z0-9])?)?$", max_length=52)] = ""
    """Name of the release's objects. Empty: the release's own, with the chart's behind it unless it is in it."""
    images: Images = Images()
    """Images of the operator and of the jobs' pods."""
    image_pull_secrets: list[NamedSecret] = Field(default_factory=list)
    """Secrets with credentials of the registry: in the release's namespace for the operator, and in that of each job for its pods."""
    watch_namespaces: list[Namespace] = Field(default_factory=list)
    """Namespaces of the jobs, which must exist. Empty: all of the cluster. With a list the operator has Roles there, and no ClusterRole."""
    replicas: Annotated[int, Field(ge=1, le=9)] = 1
    """Pods of the operator. A Lease elects the one that acts; the next follows at once when it stops, within 15 seconds when it is lost."""
    workers: Annotated[int, Field(ge=1, le=64)] = 8
    """Jobs that are looked at at a time."""
    resync_seconds: Annotated[int, Field(ge=10, le=3_600)] = 300
    """Seconds between two looks at every job, whether anything happened or not. Changes are seen at once."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least level of the operator's log."""
    resources: Resources = Resources(requests={"cpu": "100m", "memory": "192Mi"}, limits={"memory": "512Mi"})
    """Of a pod of the operator. A thousand jobs take less than 300 MiB. No CPU limit: one would slow down the first look after a start."""
    priority_class_name: str = ""
    """For example `system-cluster-critical`."""
    node_selector: Labels = Field(default_factory=dict)
    """Labels that a node must have for the operator."""
    tolerations: list[Toleration] = Field(default_factory=list)
    """Taints that do not keep the operator away."""
    affinity: dict[str, Any] = Field(default_factory=dict)
    """Affinity of the operator's pods. They are spread over nodes, where that can be done, without it."""
    crds: Crds = Crds()
    """The CustomResourceDefinition of RLVRJob."""
    rbac: Rbac = Rbac()
    """Rights of people."""
    pod_disruption_budget: DisruptionBudget = DisruptionBudget()
    """Evictions of the operator's pods."""
    network_policy: NetworkPolicy = NetworkPolicy()
    """Traffic of the operator's pods."""
    service_monitor: Monitor = Monitor()
    """Metrics of the operator."""
    pod_monitor: PodMonitor = PodMonitor()
    """Metrics of the jobs' learners and verifiers: step, reward, pass rate, queue wait."""
    prometheus_rule: PrometheusRule = PrometheusRule()
    """Alerts."""
    grafana_dashboard: Dashboard = Dashboard()
    """A dashboard of operator and jobs."""
    sandbox: Sandbox = Sandbox()
    """Pods that run what a model wrote."""
    kueue: Kueue = Kueue()
    """Queues of Kueue, which jobs name in `scheduling.queue`."""
    tracing: Tracing = Tracing()
    """Traces of the operator."""
