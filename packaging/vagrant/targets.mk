# Targets for hosts of their own; docs/vagrant.md tells about them.
.PHONY: vagrant-box vagrant-test vagrant-lab-start vagrant-lab-stop

vagrant-box: ## build a small Debian box for Vagrant with libvirt, as root, where none can be downloaded
	@packaging/vagrant/box.sh

vagrant-test: deb ## break a cluster of virtual machines on purpose (VAGRANTARGS; see docs/vagrant.md)
	@packaging/vagrant/test.sh $(VAGRANTARGS)

vagrant-lab-start: ## run libvirt, as root, where no service manager does
	@packaging/vagrant/lab.sh start

vagrant-lab-stop: ## end the hosts, that libvirt and its networks
	@packaging/vagrant/lab.sh stop
