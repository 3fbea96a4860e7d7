"""The emulated Batch behaves as the real one's documentation says: these tests are about it, not about slml."""

import json
import time

import boto3
import botocore
import pytest
from engine import BASE

GIB = {"type": "MEMORY", "value": "512"}
RETRY = {
    "attempts": 3,
    "evaluateOnExit": [{"action": "RETRY", "onExitCode": "143"}, {"action": "EXIT", "onReason": "*"}],
}


@pytest.fixture(scope="module")
def batch(cloud):
    ec2, iam = boto3.client("ec2"), boto3.client("iam")
    role = iam.create_role(RoleName="emulation", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    subnet = ec2.describe_subnets()["Subnets"][0]
    group = ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"]
    batch = boto3.client("batch")
    resources = {"type": "FARGATE", "maxvCpus": 4, "subnets": [subnet["SubnetId"]], "securityGroupIds": [group]}
    batch.create_compute_environment(
        computeEnvironmentName="emulation", type="MANAGED", computeResources=resources, serviceRole=role
    )
    order = [{"order": 1, "computeEnvironment": "emulation"}]
    batch.create_job_queue(jobQueueName="emulation", priority=1, computeEnvironmentOrder=order, state="ENABLED")
    return batch


def submit(batch, script, name="job", image=BASE, retry=None, resources=(), **more):
    container = {
        "image": image,
        "command": ["python3", "-c", script],
        "resourceRequirements": [{"type": "VCPU", "value": "1"}, GIB, *resources],
    }
    retry = retry or {"attempts": 1}
    batch.register_job_definition(
        jobDefinitionName=name, type="container", containerProperties=container, retryStrategy=retry
    )
    return batch.submit_job(jobName=name, jobQueue="emulation", jobDefinition=name, **more)["jobId"]


def described(batch, id):
    return batch.describe_jobs(jobs=[id])["jobs"][0]


def wait(batch, id, states=("SUCCEEDED", "FAILED"), seconds=60):
    end = time.monotonic() + seconds
    while (job := described(batch, id))["status"] not in states:
        assert time.monotonic() < end, job
        time.sleep(0.1)
    return job


def lines(job):
    found = boto3.client("logs").get_log_events(
        logGroupName="/aws/batch/job", logStreamName=job["container"]["logStreamName"], startFromHead=True
    )
    return [event["message"] for event in found["events"]]


def test_a_container_reaches_the_cloud_and_its_log_is_read_while_it_runs(batch, cloud):
    script = "import os,time,urllib.request as u; print('begin', flush=True); time.sleep(3);"
    script += "print(u.urlopen(os.environ['AWS_ENDPOINT_URL'] + '/moto-api/data.json').status)"
    id = submit(batch, script)
    job = wait(batch, id, ("RUNNING",))
    end = time.monotonic() + 10
    while lines(described(batch, id)) != ["begin"]:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert described(batch, id)["status"] == "RUNNING"
    job = wait(batch, id)
    assert (job["status"], job["container"]["exitCode"], lines(job)) == ("SUCCEEDED", 0, ["begin", "200"])


def test_only_what_the_rules_name_is_tried_again(batch):
    lost = "import os,sys; sys.exit(143 if os.environ['AWS_BATCH_JOB_ATTEMPT'] == '1' else 3)"
    job = wait(batch, submit(batch, lost, retry=RETRY))
    assert [a["container"]["exitCode"] for a in job["attempts"]] == [143, 3]
    assert job["statusReason"] == "Essential container in task exited"
    open_ended = {"attempts": 2, "evaluateOnExit": [{"action": "EXIT", "onExitCode": "7"}]}
    assert len(wait(batch, submit(batch, "1/0", retry=open_ended))["attempts"]) == 2  # no rule matches: again


def test_out_of_memory_and_a_missing_image_are_named(batch):
    job = wait(batch, submit(batch, "x = b'x' * 10**9"))
    assert job["container"]["reason"].startswith("OutOfMemoryError")
    assert job["container"]["exitCode"] == 137
    job = wait(batch, submit(batch, "", image="localhost/nothing:here"))
    assert job["container"]["reason"].startswith("CannotPullContainerError")
    assert job["statusReason"] == "Task failed to start"
    assert "exitCode" not in job["container"]


def test_a_job_without_a_machine_waits_and_says_why(batch):
    id = submit(batch, "", resources=[{"type": "GPU", "value": "1"}])
    job = wait(batch, id, ("RUNNABLE",))
    time.sleep(0.3)
    assert described(batch, id)["statusReason"].startswith("CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY")
    front = batch.get_job_queue_snapshot(jobQueue="emulation")["frontOfQueue"]["jobs"]
    assert [entry["jobArn"] for entry in front] == [job["jobArn"]]
    batch.cancel_job(jobId=id, reason="not today")
    assert wait(batch, id)["statusReason"] == "not today"


def test_termination_is_asked_first(batch):
    script = "import signal,sys,time; signal.signal(15, lambda *_: sys.exit(9)); print(1, flush=True); time.sleep(60)"
    id = submit(batch, script, retry=RETRY)
    wait(batch, id, ("RUNNING",))
    while not lines(described(batch, id)):
        time.sleep(0.1)
    batch.terminate_job(jobId=id, reason="enough")
    job = wait(batch, id)
    assert (job["statusReason"], job["container"]["exitCode"], len(job["attempts"])) == ("enough", 9, 1)


def test_a_host_that_is_taken_away_is_replaced(batch):
    script = "import os,time; print(1, flush=True); time.sleep(60 if os.environ['AWS_BATCH_JOB_ATTEMPT'] == '1' else 0)"
    rules = [{"action": "RETRY", "onStatusReason": "Host EC2*"}, {"action": "EXIT", "onReason": "*"}]
    id = submit(
        batch,
        "import signal; signal.signal(15, lambda *_: exit(143)); " + script,
        retry={**RETRY, "evaluateOnExit": rules},
    )
    wait(batch, id, ("RUNNING",))
    while not lines(described(batch, id)):
        time.sleep(0.1)
    batch.terminate_job(jobId=id, reason="Host EC2 (instance i-0) terminated.")
    job = wait(batch, id)
    assert job["status"] == "SUCCEEDED"
    assert job["attempts"][0]["statusReason"].startswith("Host EC2")


def test_arrays_and_dependencies(batch):
    array = submit(batch, "import os; print(os.environ['AWS_BATCH_JOB_ARRAY_INDEX'])", arrayProperties={"size": 3})
    after = submit(batch, "print('after')", name="after", dependsOn=[{"jobId": array}])
    assert wait(batch, after)["status"] == "SUCCEEDED"
    assert described(batch, array)["arrayProperties"]["statusSummary"]["SUCCEEDED"] == 3
    assert [lines(described(batch, f"{array}:{n}")) for n in range(3)] == [["0"], ["1"], ["2"]]
    bad = submit(batch, "1/0", name="bad")
    assert wait(batch, submit(batch, "", name="after", dependsOn=[{"jobId": bad}]))["status"] == "FAILED"


def test_a_role_may_do_what_its_policies_allow(batch, cloud):
    iam, s3 = boto3.client("iam"), boto3.client("s3")
    s3.create_bucket(Bucket="shared", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    s3.put_object(Bucket="shared", Key="mine/x", Body=b"1")
    own = {"Effect": "Allow", "Action": ["s3:*Object"], "Resource": ["arn:aws:s3:::shared/mine/*"]}
    look = {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::shared"}
    look["Condition"] = {"StringLike": {"s3:prefix": ["mine/*"]}}
    role = iam.create_role(RoleName="mine", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    iam.put_role_policy(
        RoleName="mine", PolicyName="p", PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [own, look]})
    )
    key = boto3.client("sts").assume_role(RoleArn=role, RoleSessionName="test")["Credentials"]
    names = {"aws_access_key_id": "AccessKeyId", "aws_secret_access_key": "SecretAccessKey"}
    names |= {"aws_session_token": "SessionToken"}
    session = boto3.Session(**{name: key[field] for name, field in names.items()})
    mine = session.client("s3")
    assert mine.get_object(Bucket="shared", Key="mine/x")["Body"].read() == b"1"
    assert mine.list_objects_v2(Bucket="shared", Prefix="mine/")["KeyCount"] == 1
    for refused in (
        lambda: mine.get_object(Bucket="shared", Key="yours/x"),
        lambda: mine.put_object(Bucket="shared", Key="yours/x", Body=b""),
        lambda: mine.list_objects_v2(Bucket="shared", Prefix=""),
        lambda: mine.delete_objects(Bucket="shared", Delete={"Objects": [{"Key": "yours/x"}]}),
        lambda: mine.copy_object(Bucket="shared", Key="mine/y", CopySource="shared/yours/x"),
        lambda: session.client("glue").get_database(Name="yours"),
        lambda: session.client("batch").describe_jobs(jobs=["x"]),
        lambda: session.client("iam").list_roles(),
    ):
        with pytest.raises(botocore.exceptions.ClientError, match="AccessDenied"):
            refused()
