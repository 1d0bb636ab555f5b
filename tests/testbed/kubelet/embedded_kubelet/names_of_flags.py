"""Names that a kubelet's command line knows: data, so that an unknown one stops the embedded kubelet as well."""

from __future__ import annotations

SWITCHES = frozenset(
    """
    add-dir-header alsologtostderr anonymous-auth authentication-token-webhook cgroups-per-qos contention-
    profiling cpu-cfs-quota docker-only docker-tls enable-cadvisor-json-endpoints enable-controller-attach-
    detach enable-debugging-handlers enable-load-reader enable-server exit-on-lock-contention experimental-
    allocatable-ignore-eviction experimental-check-node-capabilities-before-mount experimental-kernel-memcg-
    notification experimental-logging-sanitization fail-swap-on keep-terminated-pod-volumes kernel-memcg-
    notification local-storage-capacity-isolation log-cadvisor-usage logtostderr make-iptables-util-chains one-
    output protect-kernel-defaults really-crash-for-testing redirect-container-streaming register-node register-
    schedulable rotate-certificates rotate-server-certificates runonce seccomp-default serialize-image-pulls
    skip-headers skip-log-headers storage-driver-secure
    """.split()
)
"""Flags without a value (or with ``=true``). From ``kubelet --help`` of 1.20.2, and a few later ones."""

VALUES = frozenset(
    """
    address allowed-unsafe-sysctls application-metrics-count-limit authentication-token-webhook-cache-ttl
    authorization-mode authorization-webhook-cache-authorized-ttl authorization-webhook-cache-unauthorized-ttl
    azure-container-registry-config boot-id-file bootstrap-kubeconfig cert-dir cgroup-driver cgroup-root chaos-
    chance client-ca-file cloud-config cloud-provider cluster-dns cluster-domain cni-bin-dir cni-cache-dir cni-
    conf-dir config config-dir container-hints container-log-max-files container-log-max-size container-runtime
    container-runtime-endpoint containerd containerd-namespace cpu-cfs-quota-period cpu-manager-policy cpu-
    manager-policy-options cpu-manager-reconcile-period docker docker-endpoint docker-env-metadata-whitelist
    docker-root docker-tls-ca docker-tls-cert docker-tls-key dynamic-config-dir enforce-node-allocatable event-
    burst event-qps event-storage-age-limit event-storage-event-limit eviction-hard eviction-max-pod-grace-
    period eviction-minimum-reclaim eviction-pressure-transition-period eviction-soft eviction-soft-grace-period
    experimental-bootstrap-kubeconfig experimental-mounter-path feature-gates file-check-frequency global-
    housekeeping-interval hairpin-mode healthz-bind-address healthz-port hostname-override housekeeping-interval
    http-check-frequency image-credential-provider-bin-dir image-credential-provider-config image-gc-high-
    threshold image-gc-low-threshold image-pull-progress-deadline image-service-endpoint iptables-drop-bit
    iptables-masquerade-bit kube-api-burst kube-api-content-type kube-api-qps kube-reserved kube-reserved-cgroup
    kubeconfig kubelet-cgroups lock-file log-backtrace-at log-dir log-file log-file-max-size log-flush-frequency
    log-json-info-buffer-size logging-format machine-id-file manifest-url manifest-url-header master-service-
    namespace max-open-files max-pods maximum-dead-containers maximum-dead-containers-per-container memory-
    manager-policy minimum-container-ttl-duration minimum-image-ttl-duration network-plugin network-plugin-mtu
    node-ip node-labels node-status-max-images node-status-update-frequency non-masquerade-cidr oom-score-adj
    pod-cidr pod-infra-container-image pod-manifest-path pod-max-pids pods-per-core port provider-id qos-
    reserved read-only-port registry-burst registry-qps reserved-cpus reserved-memory resolv-conf root-dir
    runtime-cgroups runtime-request-timeout seccomp-profile-root stderrthreshold storage-driver-buffer-duration
    storage-driver-db storage-driver-host storage-driver-password storage-driver-table storage-driver-user
    streaming-connection-idle-timeout sync-frequency system-cgroups system-reserved system-reserved-cgroup tls-
    cert-file tls-cipher-suites tls-min-version tls-private-key-file topology-manager-policy topology-manager-
    policy-options topology-manager-scope v vmodule volume-plugin-dir volume-stats-agg-period
    """.split()
)
"""Flags with a value."""

GATES = frozenset(
    """
    APIListChunking APIPriorityAndFairness APIResponseCompression APIServerIdentity AllAlpha AllBeta
    AllowInsecureBackendProxy AnyVolumeDataSource AppArmor BalanceAttachedNodeVolumes
    BoundServiceAccountTokenVolume CPUManager CPUManagerPolicyOptions CRIContainerLogRotation CSIInlineVolume
    CSIMigration CSIMigrationAWS CSIMigrationAWSComplete CSIMigrationAzureDisk CSIMigrationAzureDiskComplete
    CSIMigrationAzureFile CSIMigrationAzureFileComplete CSIMigrationGCE CSIMigrationGCEComplete
    CSIMigrationOpenStack CSIMigrationOpenStackComplete CSIMigrationvSphere CSIMigrationvSphereComplete
    CSIServiceAccountToken CSIStorageCapacity CSIVolumeFSGroupPolicy ConfigurableFSGroupPolicy
    CronJobControllerV2 CustomCPUCFSQuotaPeriod DefaultPodTopologySpread DevicePluginCDIDevices
    DisableAcceleratorUsageMetrics DownwardAPIHugePages DynamicKubeletConfig DynamicResourceAllocation
    EfficientWatchResumption EndpointSlice EndpointSliceNodeName EndpointSliceProxying
    EndpointSliceTerminatingCondition EphemeralContainers ExpandCSIVolumes ExpandInUsePersistentVolumes
    ExpandPersistentVolumes ExperimentalHostUserNamespaceDefaulting GenericEphemeralVolume GracefulNodeShutdown
    HPAContainerMetrics HPAScaleToZero HugePageStorageMediumSize IPv6DualStack ImageVolume
    ImmutableEphemeralVolumes InPlacePodVerticalScaling KubeletCredentialProviders KubeletPodResources
    KubeletPodResourcesDynamicResources KubeletPodResourcesGet KubeletPodResourcesGetAllocatable KubeletTracing
    LegacyNodeRoleBehavior LoadBalancerIPMode LocalStorageCapacityIsolation
    LocalStorageCapacityIsolationFSQuotaMonitoring MemoryManager MemoryQoS MixedProtocolLBService
    NodeDisruptionExclusion NodeSwap NonPreemptingPriority PodAndContainerStatsFromCRI PodDisruptionBudget
    PodOverhead PodReadyToStartContainersCondition ProcMountType QOSReserved RemainingItemCount RemoveSelfLink
    ResourceHealthStatus RootCAConfigMap RotateKubeletServerCertificate RunAsGroup SeccompDefault
    ServerSideApply ServiceAccountIssuerDiscovery ServiceLBNodePortControl ServiceNodeExclusion ServiceTopology
    SetHostnameAsFQDN SidecarContainers SizeMemoryBackedVolumes StorageVersionAPI StorageVersionHash Sysctls
    TTLAfterFinished TopologyManager TopologyManagerPolicyOptions UserNamespacesSupport ValidateProxyRedirects
    WarningHeaders WinDSR WinOverlay WindowsEndpointSliceProxying
    """.split()
)
"""Feature gates beside DevicePlugins: those of 1.20.2, and later ones that GPU nodes name."""
